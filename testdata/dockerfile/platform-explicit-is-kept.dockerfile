FROM other
RUN x
