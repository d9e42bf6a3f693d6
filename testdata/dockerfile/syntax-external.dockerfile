#!/usr/bin/env x
# syntax=ghcr.io/project-copacetic/copacetic-frontend:latest --flag
not: a dockerfile
