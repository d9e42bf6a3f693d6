FROM node AS app
RUN own
