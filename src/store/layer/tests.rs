//! What packing and unpacking layers promise: the same tree both ways, whatever a tar may hold.
