FROM scratch
ADD https://a.b/c.git?reff=x /
