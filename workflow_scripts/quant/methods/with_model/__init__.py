"""What runs the model while it quantises: inputs as the quantised model gives them, reconstruction, tuning."""
