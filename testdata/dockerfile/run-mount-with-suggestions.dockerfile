FROM alpine
RUN --mount=typ=cache,target=/x a
RUN --mount=type=cahce,target=/x a
RUN --mount=type=cache,target=/x,sharing=lock a
RUN --mount=type=secret,id=a,requird a
RUN --netwrok=none a
RUN --security=insecrue a
