"""From anything that shows pictures to detections: models of every form, sources, results, files, tracks."""
