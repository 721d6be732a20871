"""Send a picture to a Triton server that serves a repository of mtm-serve-repo, and save what it answers.

pip install 'tritonclient[http]' opencv-python-headless
python triton_client.py photo.jpg --url localhost:8000 --save predictions.npz
"""

import argparse
from http.client import HTTPException
from pathlib import Path

import cv2
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="localhost:8000")
    parser.add_argument("--model", default="mtmamba")
    parser.add_argument("--save", type=Path, help="an .npz file for the predictions")
    arguments = parser.parse_args()
    image = cv2.imread(str(arguments.picture))
    if image is None:
        parser.error(f"{arguments.picture}: expected a picture, found something that does not decode as one")
    try:
        predictions = ask(arguments.url.removeprefix("http://"), arguments.model, image)
    except (OSError, HTTPException, InferenceServerException) as error:
        parser.exit(
            1,
            f"{arguments.url}: expected a Triton server with the model {arguments.model}, found none that answers ({error}); "
            "start one as the README.md of the repository says, or name another with --url\n",
        )
    for name, value in predictions.items():
        print(f"{name:<12} {value.dtype} {list(value.shape)}, {value.min()} to {value.max()}")
    if arguments.save:
        np.savez_compressed(arguments.save, **predictions)


def ask(url: str, model: str, image: np.ndarray) -> dict[str, np.ndarray]:
    """One picture [H, W, 3] uint8 BGR: {task: its prediction}."""
    picture = np.ascontiguousarray(image[None, :, :, ::-1])
    client = triton.InferenceServerClient(url=url)
    try:
        request = triton.InferInput("picture", list(picture.shape), "UINT8")
        request.set_data_from_numpy(picture)
        names = [output["name"] for output in client.get_model_metadata(model)["outputs"]]
        answer = client.infer(model, [request], outputs=[triton.InferRequestedOutput(name) for name in names])
        return {name: answer.as_numpy(name)[0] for name in names}
    finally:
        client.close()


if __name__ == "__main__":
    main()
