FROM --platform=lin/ux/amd/64 alpine
