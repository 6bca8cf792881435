"""Training: objectives, the step, the loop around it, one run or many, one process or several."""
