"""From what a run has published to a report: tables, curves and provenance. No model, no slide, no torch."""
