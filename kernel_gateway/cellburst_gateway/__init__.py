"""Part of Cellburst; see docs/architecture.md."""
