FROM alpine
ARG T=cach
RUN --mount=type=$T,target=/x y
