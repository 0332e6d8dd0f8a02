"""Your own training loop: two lines replace an EMA. A small Mean Teacher on real digits with 50 labels."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from spatial_ensemble import Teacher, spatial_temporal_smoothing

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
labelled, unlabelled, test = slice(0, 50), slice(50, 1297), slice(1297, None)

student = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(student.parameters(), lr=0.2, momentum=0.9)
teacher = Teacher(student, spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5))  # 1

for _ in range(300):
    x = images[unlabelled][torch.randint(1247, (128,))]
    consistency = F.mse_loss(student(x + 0.3 * torch.randn_like(x)).softmax(1), teacher(x).softmax(1))
    loss = F.cross_entropy(student(images[labelled]), labels[labelled]) + 10 * consistency
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    teacher.update(student)  # 2

for name, network in (("student", student.eval()), ("teacher", teacher)):
    accuracy = (network(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"{name}: {accuracy:.1%} of {len(images[test])} test images")
