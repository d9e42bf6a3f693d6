FROM alpine
USER app:www
RUN one
RUN --network=default two
RUN --network=none three
RUN --network=host --security=insecure --device=nvidia.com/gpu=all,required four
RUN ["exec", "form $HOME"]
