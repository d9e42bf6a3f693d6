FROM alpine AS 1st
RNU make
RUN --mout=type=bind x
COPY --form=build a b
COPY a
ENV A
HEALTHCHECK --interval=5 CMD x
SHELL bash
LABEL a=b c
