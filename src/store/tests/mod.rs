//! What the store promises, on real directories, devices and files.
