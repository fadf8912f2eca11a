# The web page of app.py on the CPU (docs/installation.md#containers); on NVIDIA GPUs with --build-arg DEVICE=cuda.
#   docker build --tag dinet .
#   docker run --publish 127.0.0.1:7860:7860 --volume dinet-weights:/weights dinet
FROM python:3.13-slim AS packages
ARG DEVICE=cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# pip stays: it fetches weights
RUN python -m venv /venv && /venv/bin/pip install uv
WORKDIR /app
# Before the code, so that a change of the code does not install them again. On Linux, PyPI's PyTorch is that for CUDA.
COPY pyproject.toml requirements.lock ./
RUN if [ "$DEVICE" = cpu ]; then \
        /venv/bin/pip install --no-deps --constraint requirements.lock \
            --index-url https://download.pytorch.org/whl/cpu torch torchvision; \
    fi
RUN /venv/bin/uv pip install --python /venv/bin/python --no-cache --constraint requirements.lock \
        --requirement pyproject.toml --extra app --extra train --extra eval \
    && /venv/bin/pip uninstall --yes uv

FROM python:3.13-slim
RUN useradd --create-home dinet && mkdir --mode=1777 /weights
COPY --from=packages /venv /venv
COPY . /app
WORKDIR /app
USER dinet
ENV PATH=/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 DINET_CACHE=/weights
VOLUME /weights
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD \
    ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860', timeout=10)"]
# at all addresses of the container; --publish says who reaches it
CMD ["python", "app.py", "--host", "0.0.0.0"]
