FROM alpine AS deps
RUN deps
FROM alpine AS main
WORKDIR /src
ENV CACHE=/cache DIR=sub
RUN --mount=source=a,target=. --mount=from=deps,source=/out,target=/deps,rw \
    --mount=from=busybox,target=/bb \
    --mount=type=cache,target=$CACHE,sharing=private \
    --mount=type=cache,id=go,target=rel,uid=5,mode=0700 \
    --mount=type=cache,target=/seeded,from=deps,source=/seed,ro \
    --mount=type=tmpfs,target=/tmp,size=64m \
    bind and cache
RUN --mount=type=secret,id=a --mount=type=secret,id=b,env=TOKEN --mount=type=secret,id=c,target=rel/c,required,mode=440,uid=1,gid=2 \
    --mount=type=ssh --mount=type=ssh,id=other,target=/agent,required curl $TOKEN $CACHE $UNSET
RUN --mount=target=/ctx,source=${DIR} --mount=type=tmpfs,target=/t,from=main,id=x idle
