"""What each kind of source holds: configuration, tensors and the files beside them, or why it is refused."""
