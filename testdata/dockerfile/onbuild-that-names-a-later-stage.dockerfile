FROM node AS a
FROM x AS helper
