FORM scratch
COPY --chwon=1 a b
RUN --mount=type=cahce,target=/x true
