FROM alpine
ENV a=1
run echo "$a" '$a' ${b:-2} $c \$a
RUN echo ${broken
