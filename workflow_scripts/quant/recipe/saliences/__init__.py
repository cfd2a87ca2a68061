"""What makes an input channel important: a module and a function of its name for each salience."""
