"""The training itself: the step, the loss, the schedule and the loop."""
