"""Random views of whole batches of images, each image with its own draws; `spatial_ensemble.data.views` names them."""
