FROM base
RUN pwd
COPY a rel/
LABEL own=2 "q k"="v v"
