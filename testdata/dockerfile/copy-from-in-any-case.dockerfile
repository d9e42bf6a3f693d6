FROM alpine AS Base
FROM scratch
COPY --from=BASE a /
RUN --mount=from=bAsE,target=/x y
