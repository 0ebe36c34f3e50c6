"""What a training did to the model: pictures before and after, judged, in a report."""
