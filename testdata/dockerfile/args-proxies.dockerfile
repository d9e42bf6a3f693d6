FROM alpine
RUN one
ARG HTTP_PROXY
ENV no_proxy=own
RUN two
