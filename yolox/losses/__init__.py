"""SimOTA label assignment and the detection loss."""
