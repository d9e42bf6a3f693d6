FROM --platform=linux/amd64 scratch AS bad
FROM --platform=linux/amd64 scratch AS my_amd64_stage
FROM --platform=linux/arm64 scratch AS linux
