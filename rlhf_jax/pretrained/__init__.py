"""Checkpoint folders of published models: tensor names, configs, weights in and out."""
