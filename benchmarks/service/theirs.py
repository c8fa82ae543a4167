"""clip-retrieval 2.45.0's back end over a folder, without its CLIP model.

It is `clip_back.py` as released: its routes, its kNN service and its metadata provider, on the
Flask server that its `clip_back()` starts. Only the code that loads the model, and its packages,
are left out: every query comes with its embedding.
"""

import importlib.util
import sys
import types


def main(package: str, folder: str, port: int, metadata: str) -> None:
    stub = types.ModuleType("clip_retrieval")  # its __init__ imports inference, torch included
    stub.__path__ = [package]
    sys.modules["clip_retrieval"] = stub
    sys.modules["torch"] = types.ModuleType("torch")  # imported, but not used for an embedding
    back = importlib.import_module("clip_retrieval.clip_back")
    from flask import Flask
    from flask_cors import CORS
    from flask_restful import Api

    columns = ["url", "image_path", "caption", "NSFW"]
    index = back.load_index(folder + "/image.index", enable_faiss_memory_mapping=True)
    provider, _ = back.load_metadata_provider(
        folder, metadata == "hdf5", False, index, columns, False
    )
    resource = back.ClipResource(
        device="cpu",
        model=None,
        preprocess=None,
        tokenizer=None,
        model_txt_mclip=None,
        safety_model=None,
        violence_detector=None,
        metadata_provider=provider,
        image_index=index,
        text_index=None,
        ivf_old_to_new_mapping=None,
        columns_to_return=columns,
        metadata_is_ordered_by_ivf=False,
        aesthetic_embeddings=None,
    )
    app = Flask(__name__)
    api = Api(app)
    resources = {"clip_resources": {"search_index": resource}}
    api.add_resource(back.KnnService, "/knn-service", resource_class_kwargs=resources)
    CORS(app)
    print("ready", flush=True)
    app.run(host="127.0.0.1", port=port, debug=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
