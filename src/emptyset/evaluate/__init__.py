"""What was lost: accuracy on labelled images, agreement with the teacher on any."""
