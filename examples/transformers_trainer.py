"""Trainer of Hugging Face transformers: a callback keeps the teacher, and evaluations use its weights."""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from spatial_ensemble import spatial_temporal_smoothing
from spatial_ensemble.integrations.transformers import TeacherCallback

torch.manual_seed(0)
config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
model = BertForSequenceClassification(config)
tokens = torch.randint(1, 50, (64, 8))
data = [{"input_ids": row, "labels": row[0] % 2} for row in tokens]

callback = TeacherCallback(spatial_temporal_smoothing(momentum=0.9, preserve_prob=0.5))
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(folder, max_steps=4, eval_strategy="steps", eval_steps=2, use_cpu=True, report_to=[])
    trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, callbacks=[callback])
    trainer.train()
    with callback.lent(trainer.model):
        print("the teacher's loss:", round(trainer.evaluate()["eval_loss"], 3))
    callback.teacher.module.save_pretrained(folder)
print("updates:", callback.teacher.step)
