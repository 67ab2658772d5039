# kdbench for a CPU or one machine's GPUs: docs/installing.md.
#   docker build -t kdbench .
#   docker run --rm -v "$PWD/runs:/home/kdbench/runs" kdbench run
FROM python:3.11-slim

# mmengine's OpenCV links against these.
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*

COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src

RUN useradd --create-home kdbench
USER kdbench
WORKDIR /home/kdbench
ENTRYPOINT ["kdbench"]
CMD ["--help"]
