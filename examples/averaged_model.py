"""Drop-in replacement for torch.optim.swa_utils.AveragedModel: change the import and `multi_avg_fn`."""

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from spatial_ensemble import spatial_temporal_smoothing

# before: from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from spatial_ensemble.integrations.averaged_model import AveragedModel

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

# before: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
averaged = AveragedModel(model, smoothing=spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5))

batches = [torch.randn(32, 8) for _ in range(20)]
for x in batches:
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    averaged.update_parameters(model)

update_bn(batches, averaged)
error = (averaged(batches[0]) - batches[0].sum(1, keepdim=True)).square().mean()
print(f"{averaged.n_averaged} students averaged, error {error:.3f}")
