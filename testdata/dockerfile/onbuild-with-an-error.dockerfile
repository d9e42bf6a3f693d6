FROM node
RUN x
