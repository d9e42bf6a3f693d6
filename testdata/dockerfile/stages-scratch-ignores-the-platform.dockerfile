FROM --platform=linux/arm64 scratch AS arm64
COPY a /
