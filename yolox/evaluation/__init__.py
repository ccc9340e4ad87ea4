"""Post-processing, COCO metrics and the one evaluation loop."""
