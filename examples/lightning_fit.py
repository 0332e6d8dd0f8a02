"""Lightning: WeightSmoothing replaces EMAWeightAveraging; TeacherUpdate is for students that learn from the teacher."""

import tempfile

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from spatial_ensemble import Teacher, spatial_temporal_smoothing
from spatial_ensemble.integrations.lightning import TeacherUpdate, WeightSmoothing

digits = load_digits()
data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
train, test = torch.utils.data.Subset(data, range(1297)), torch.utils.data.Subset(data, range(1297, 1797))
STS = spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5)


class Classifier(pl.LightningModule):
    """Validated with the smoothed weights, which the callback puts in."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.student(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("accuracy", (self.student(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.student.parameters(), lr=0.1)


class MeanTeacher(Classifier):
    """Owns a teacher and learns from it. Lightning saves and moves it; the callback only updates it."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = Teacher(self.student, STS)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        noisy = batch[0] + 0.1 * torch.randn_like(batch[0])
        return super().training_step(batch, index) + F.mse_loss(self.student(noisy), self.teacher(batch[0]))


pl.seed_everything(0, verbose=False)
for model, callback in ((Classifier(), WeightSmoothing(STS)), (MeanTeacher(), TeacherUpdate())):
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=3,
            accumulate_grad_batches=2,  # one update per optimizer step, not per batch
            accelerator="cpu",
            callbacks=[callback],
            default_root_dir=folder,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(train, 32, shuffle=True), DataLoader(test, 500))
    print(f"{type(model).__name__}: {trainer.callback_metrics['accuracy']:.1%}")
