# An image that carries its archives, so that one digest names all of what is deployed. The context is their folder:
#
#   docker build -f docker/archives.Dockerfile -t my-models:1 --build-arg IMAGE=marctl:0.1.0-cpu model_store/archives
ARG IMAGE=marctl:0.1.0-cpu
# hadolint ignore=DL3006  # the tag is part of the argument
FROM ${IMAGE}
# With their signatures, if they have any: NAME.mar.sig.
COPY --chmod=0444 *.mar* /models/
