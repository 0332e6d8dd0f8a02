"""A loop in the style of timm's training script: change the import of ModelEmaV3 and pass `preserve_prob`."""

import timm
import timm.utils
import torch

# before: from timm.utils import ModelEmaV3
from spatial_ensemble.integrations.timm import ModelEmaV3

torch.manual_seed(0)
model = timm.create_model("resnet10t", num_classes=10, in_chans=1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model_ema = ModelEmaV3(model, decay=0.99, use_warmup=True, preserve_prob=0.5)

for num_updates in range(1, 4):
    loss = model(torch.randn(4, 1, 32, 32)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model_ema.update(model, step=num_updates)

checkpoint = {"state_dict": timm.utils.get_state_dict(model), "state_dict_ema": timm.utils.get_state_dict(model_ema)}
print(f"{len(checkpoint['state_dict_ema'])} tensors, momentum {model_ema.get_decay(num_updates):.3f}")
