FROM alpine
RUN --network=none --mount="type=tmpfs,target=/a b" -- --not-a-flag
COPY --chown='1:2' --chmod=7\55 --link=false a --b /c/
RUN --mount=type=cache,target=/x \
    --mount=type=tmpfs,target=/y \
    true
