"""The study of policies of three sizes on old samples."""
