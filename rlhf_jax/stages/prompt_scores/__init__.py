"""Scores of the reference policy's samples, which the stage `prompt_values` stores."""
