FROM alpine
ENV a=1 b="x y" c=x\ y d='q $a' \
  e=${a:-z} f= PATH=/new:$PATH
ENV a=2 $b=3
ENV legacy a  "b" c
RUN x
