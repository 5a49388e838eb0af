"""What each architecture is: hyperparameters and tensors. One file per architecture."""
