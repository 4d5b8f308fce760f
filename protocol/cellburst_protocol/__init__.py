"""Every message, state, error code and resource request that crosses a process of Cellburst. No I/O."""

SOFTWARE_VERSION = "0.1.0"
