"""The study of reward models of three sizes and old samples."""
