# Every published figure that is not marked as of an older machine: from the repository's top folder, in this order.
# Downloads come by themselves; data/cifar10-jpeg is CIFAR-10 as a folder of JPEGs (--data cifar10 is the original).

# README.md, Results
python -m report.race confirmed
python char_rnn.py --data tinyshakespeare --out runs/char_rnn-tiny
python char_rnn.py --data data/shakespeare-works --dropout 0.2 --steps 8000 --out runs/char_rnn-shakespeare-works-2x512
python vae.py --data mnist --binarize --image-size 28 --arch mlp --latent-dim 50 --steps 80000 --lr 1e-3 --samples 1000 --out runs/vae-binary-mlp50
python vae.py --data mnist --binarize --image-size 28 --latent-dim 50 --steps 10000 --out runs/vae-binary-conv50
python dcgan.py --data data/cifar10-jpeg --steps 5000 --out runs/dcgan-cifar10-jpeg32-gan
python simclr.py --data data/cifar10-jpeg --batch-size 128 --steps 1250 --warmup 100 --lr 0.12 --half-size 0.9 --out runs/simclr-20min
python simclr.py --data data/cifar10-jpeg --batch-size 128 --steps 4500 --warmup 200 --lr 0.12 --half-size 0.9 --out runs/simclr-2h
