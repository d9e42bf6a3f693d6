FROM scratch
ARG DIR_ASSETS=a/ unset
COPY $DIR_ASSET $foo ${foo:-x} $unset $DIR_ASSETS /
ENV PATH=$PAHT:/x A=$PATH
RUN echo $nothing
