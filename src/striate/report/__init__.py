"""Pages and pictures, drawn from plain data alone: no network and no data set is needed to draw a report again."""
